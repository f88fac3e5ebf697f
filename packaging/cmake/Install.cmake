# SPDX-License-Identifier: Apache-2.0
# Install rules: components Runtime (library, licence), Development (header, link, CMake and pkg-config files)
# and Tool (the tqkv program).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

install(TARGETS tqkv EXPORT tqkvTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT Runtime NAMELINK_COMPONENT Development
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES include/tqkv.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT Development)
install(FILES LICENSE packaging/THIRD_PARTY.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT Runtime)

set(tq_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/tqkv)
install(EXPORT tqkvTargets NAMESPACE tqkv:: DESTINATION ${tq_cmake_dir} COMPONENT Development)
configure_package_config_file(packaging/cmake/tqkvConfig.cmake.in tqkvConfig.cmake
  INSTALL_DESTINATION ${tq_cmake_dir} NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor release may break the API.
write_basic_package_version_file(tqkvConfigVersion.cmake
  VERSION ${PROJECT_VERSION} COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/tqkvConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/tqkvConfigVersion.cmake
  DESTINATION ${tq_cmake_dir} COMPONENT Development)

# The .pc finds its prefix from its own place, so that the tree may be moved; an absolute directory outside
# the prefix is written in full.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(TQ_PC_PREFIX "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH up "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
  string(REGEX REPLACE "/$" "" up "${up}")
  set(TQ_PC_PREFIX "\${pcfiledir}/${up}")
endif()
foreach(dir LIBDIR INCLUDEDIR)
  if(IS_ABSOLUTE "${CMAKE_INSTALL_${dir}}")
    set(TQ_PC_${dir} "${CMAKE_INSTALL_${dir}}")
  else()
    set(TQ_PC_${dir} "\${prefix}/${CMAKE_INSTALL_${dir}}")
  endif()
endforeach()
configure_file(packaging/tqkv.pc.in tqkv.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/tqkv.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT Development)

if(TARGET tqkv_tool)
  if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}" OR IS_ABSOLUTE "${CMAKE_INSTALL_BINDIR}")
    set_target_properties(tqkv_tool PROPERTIES INSTALL_RPATH "${CMAKE_INSTALL_FULL_LIBDIR}")
  else()
    file(RELATIVE_PATH to_lib "/prefix/${CMAKE_INSTALL_BINDIR}" "/prefix/${CMAKE_INSTALL_LIBDIR}")
    set_target_properties(tqkv_tool PROPERTIES INSTALL_RPATH "$ORIGIN/${to_lib}")
  endif()
  install(TARGETS tqkv_tool RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT Tool)
endif()
